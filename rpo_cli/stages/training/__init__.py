"""What stages that train share."""
