"""Pages that people work on in a browser: the blinded reading. Everything is served locally; no script from elsewhere."""
