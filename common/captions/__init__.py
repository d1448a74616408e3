"""Words of a transcript on a time line: which utterance has them, and cues of srt and vtt."""
