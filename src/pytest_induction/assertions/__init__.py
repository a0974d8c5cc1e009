"""Assertions about models: measure, reach a verdict, raise `ExpectationFailed` if it is not the expected one."""
