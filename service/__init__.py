"""The online side: HTTP in front of a bundle and a catalogue. Never imports training."""
