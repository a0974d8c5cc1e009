"""Views of records: what is shown, wherever it is shown. Needs neither torch nor a model."""
