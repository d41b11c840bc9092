"""The workbench: Streamlit pages in a process of their own, which talk to the gateway over HTTP and know nothing else."""
