"""What can be done to training images; one file each."""
