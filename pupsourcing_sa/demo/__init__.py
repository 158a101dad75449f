"""The demonstration behind ``pupsourcing-sa demo``: the quickstart's application under load, checked at the end."""
