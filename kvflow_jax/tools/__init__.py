"""Tools that a model may call: their declarations, and the call syntaxes of model families."""
