"""What runs say together: collected, compared, judged, written down."""
