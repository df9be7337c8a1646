"""What the operating system says of this machine: files under /proc and /sys, no driver and no native library."""
