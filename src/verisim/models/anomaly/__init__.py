"""Models whose output is an anomaly map: they learn from normal images alone, and cannot sample."""
