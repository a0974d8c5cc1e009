"""Reading and editing attention while a model runs: one backend a module, and what checks that nothing is unseen or changed."""
