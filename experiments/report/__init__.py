"""The report: tables, figures and limitations from the results of the other experiments."""
