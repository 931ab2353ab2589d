"""Write the report: tables, figures and limitations from the results of other experiments."""
