"""The load: the streams of a load process, their audio, and the bytes on the wire."""
