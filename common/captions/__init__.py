"""Captions: words of a transcript assigned to utterances, and cues of srt and vtt."""
