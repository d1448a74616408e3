"""Audio for a client to send: files of any kind, stdin, the microphone, as blocks of mono 16-bit samples."""
