"""What the repository says is true: TUF metadata, marks that never go back, and the channel's document."""
