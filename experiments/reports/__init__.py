"""Tables, figures and pages of one run and of many."""
