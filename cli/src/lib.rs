//! Docker-shaped commands.
