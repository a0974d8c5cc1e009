"""One forward pass of any module: how it is called, what it returns, and how it is left as it was found."""
