"""The pages: the customers' portal, the operator's page and the reader of the API's document.

Every page is made here and now from templates; nothing is built beforehand and nothing is loaded from elsewhere.
What a page shows and does goes through the API's own operations (`operations`), with the caller that the session
stands for: the portal can do nothing that the API would refuse.
"""
