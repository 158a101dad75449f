"""The demo of ``pupsourcing-sa demo``: the quickstart's application under load, with a check at the end."""
