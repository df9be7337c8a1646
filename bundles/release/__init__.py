"""The release repository: what is signed, and the forms in which it travels."""
