"""Camera or sensor → Frame or Reading. Importing this package loads neither cv2 nor a driver."""
