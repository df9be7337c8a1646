"""What is here and what of it works: children that list and try, and what was here at the last start."""
