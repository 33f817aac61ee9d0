"""A teacher's knowledge of given text: written in one pass over it, read by trainings that never load the teacher."""
