"""What is measured on stored responses."""
