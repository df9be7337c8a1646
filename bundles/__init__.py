"""What makes a bundle: the builder, its checks, and the recipes."""
