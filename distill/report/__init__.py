"""`distill-report`: verdicts, figures and a page, from summaries and result files alone."""
