"""Where samples come from (`sources`) and which client owns which sample (`partition`)."""
