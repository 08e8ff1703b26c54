"""Released code where it departs from the equations: kept to document the differences, never as a target."""
