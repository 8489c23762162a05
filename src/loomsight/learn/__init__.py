"""The main job: from a folder of good pictures to a fabric profile."""
