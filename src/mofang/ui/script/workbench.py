"""The script that Streamlit runs for every visit and click. In a folder of its own: beside a folder named `pages`,
Streamlit would run that folder's files as scripts when somebody opens /models first."""

from mofang.ui.app import main

main()
