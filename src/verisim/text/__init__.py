"""Reports as conditions: words, vocabularies, and frozen encoders from a local folder."""
