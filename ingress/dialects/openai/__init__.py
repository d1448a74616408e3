"""OpenAI's realtime transcription, as its clients speak it (docs/openai.md)."""
