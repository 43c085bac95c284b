"""Run folders: locking, replacement of finished runs, resuming, and checks of completeness."""
