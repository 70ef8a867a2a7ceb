"""The process of a job: its runner, lease, stages and progress."""
