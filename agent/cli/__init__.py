"""Parse, call one function, print text or JSON."""
