"""Whole evaluations: the protocol of source 004 with its flaws on a switch, and a fair one."""
