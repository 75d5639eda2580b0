"""Readers of data sets, and the Example that training and evaluation share."""
