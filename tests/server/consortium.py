from test_enrolment_real import Consortium, told  # noqa
