"""The endpoints of plain HTTP: recordings, tokens, capabilities, the page."""
