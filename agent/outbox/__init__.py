"""Event → durable, bounded queue on disk, in order, with every loss counted."""
