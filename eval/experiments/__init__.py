"""The paper's experiments: many trainings, its tables and claims beside their figures, a report of it all."""
