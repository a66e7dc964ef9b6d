"""What methods add to the backbone's own loss."""
