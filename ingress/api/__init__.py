"""What plain HTTP answers: recordings, tokens, capabilities, the page."""
