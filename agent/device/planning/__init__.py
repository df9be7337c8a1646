"""The plan, pure but for its store: what to try, what a trial may not show, what to choose, and why."""
