# SPDX-License-Identifier: Apache-2.0
"""A keystore as `ros2 security generate_artifacts` makes it, with the openssl program alone."""

import subprocess
from datetime import datetime, timedelta, timezone
from pathlib import Path
from xml.sax.saxutils import escape

from security_policy import dds_topics

GOVERNANCE = """<?xml version="1.0" encoding="UTF-8"?>
<dds xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance"
  xsi:noNamespaceSchemaLocation="http://www.omg.org/spec/DDS-SECURITY/20170901/omg_shared_ca_governance.xsd">
  <domain_access_rules>
    <domain_rule>
      <domains><id>{domain}</id></domains>
      <allow_unauthenticated_participants>false</allow_unauthenticated_participants>
      <enable_join_access_control>true</enable_join_access_control>
      <discovery_protection_kind>ENCRYPT</discovery_protection_kind>
      <liveliness_protection_kind>ENCRYPT</liveliness_protection_kind>
      <rtps_protection_kind>SIGN</rtps_protection_kind>
      <topic_access_rules>
        <topic_rule>
          <topic_expression>*</topic_expression>
          <enable_discovery_protection>true</enable_discovery_protection>
          <enable_liveliness_protection>true</enable_liveliness_protection>
          <enable_read_access_control>true</enable_read_access_control>
          <enable_write_access_control>true</enable_write_access_control>
          <metadata_protection_kind>ENCRYPT</metadata_protection_kind>
          <data_protection_kind>ENCRYPT</data_protection_kind>
        </topic_rule>
      </topic_access_rules>
    </domain_rule>
  </domain_access_rules>
</dds>
"""
PERMISSIONS = """<?xml version="1.0" encoding="UTF-8"?>
<dds xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance"
  xsi:noNamespaceSchemaLocation="http://www.omg.org/spec/DDS-SECURITY/20170901/omg_shared_ca_permissions.xsd">
  <permissions>
    <grant name="{enclave}">
      <subject_name>CN={enclave}</subject_name>
      <validity><not_before>{start}</not_before><not_after>{end}</not_after></validity>
      <allow_rule>
        <domains><id>{domain}</id></domains>
        <publish><topics>{publish}</topics></publish>
        <subscribe><topics>{subscribe}</topics></subscribe>
      </allow_rule>
      <default>DENY</default>
    </grant>
  </permissions>
</dds>
"""


def openssl(*arguments):
    subprocess.run(['openssl', *map(str, arguments)], check=True, capture_output=True)


def _key(path):
    openssl('ecparam', '-name', 'prime256v1', '-genkey', '-noout', '-out', path)


def _subject(name):
    return '/CN=' + name.replace('/', '\\/')


class Keystore:
    """One certificate authority, which signs identities and permissions, in a folder."""

    def __init__(self, folder: Path, domain: int):
        self.folder, self._domain = folder, domain
        self._enclaves, self._private = folder / 'enclaves', folder / 'private'
        self._enclaves.mkdir(parents=True)
        self._private.mkdir()
        self._ca_key, self._ca = self._private / 'ca.key.pem', self._private / 'ca.cert.pem'
        _key(self._ca_key)
        openssl(
            *('req', '-x509', '-new', '-key', self._ca_key, '-out', self._ca, '-days', 2),
            *('-subj', _subject('test CA')),
        )
        self._sign(GOVERNANCE.format(domain=domain), self._enclaves / 'governance.p7s')

    def add(self, enclave: str, names: dict[str, set[str]]) -> None:
        """Make keys and permissions for an enclave; `names` are those of its policy."""
        folder = self._enclaves / enclave.strip('/')
        folder.mkdir(parents=True)
        self._certify(enclave, folder)
        for name in ('identity_ca.cert.pem', 'permissions_ca.cert.pem'):
            (folder / name).symlink_to(self._ca)
        (folder / 'governance.p7s').symlink_to(self._enclaves / 'governance.p7s')
        self._sign(self._permissions(enclave, names), folder / 'permissions.p7s')

    def _certify(self, enclave, folder):
        _key(folder / 'key.pem')
        request = folder / 'request.pem'
        openssl(
            *('req', '-new', '-key', folder / 'key.pem', '-out', request),
            *('-subj', _subject(enclave)),
        )
        openssl(
            *('x509', '-req', '-in', request, '-CA', self._ca, '-CAkey', self._ca_key),
            *('-CAcreateserial', '-days', 2, '-out', folder / 'cert.pem'),
        )

    def _permissions(self, enclave, names):
        publish, subscribe = (
            ''.join(f'<topic>{escape(topic)}</topic>' for topic in sorted(topics))
            for topics in dds_topics(names)
        )
        now = datetime.now(timezone.utc)
        start, end = (f'{now + timedelta(days=days):%Y-%m-%dT%H:%M:%S}' for days in (-1, 1))
        return PERMISSIONS.format(
            enclave=enclave,
            domain=self._domain,
            start=start,
            end=end,
            publish=publish,
            subscribe=subscribe,
        )

    def _sign(self, text, path):
        source = path.with_suffix('.xml')
        source.write_text(text)
        openssl(
            *('smime', '-sign', '-text', '-in', source, '-out', path),
            *('-signer', self._ca, '-inkey', self._ca_key),
        )
