"""What is behind `chronicle up`: embedded servers, child processes, and the supervisor that keeps them running."""
