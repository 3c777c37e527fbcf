"""The playground: classes from a few dropped pictures, tried out in the browser (`selftaught play`)."""
