"""When things happen: order, retries, schedules, events, and the command line."""
